"""The layers that only top-down networks have: pyramid, upsampling, folded convolutions, dropout. Torch alone."""
