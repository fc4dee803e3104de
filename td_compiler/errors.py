"""The one error that users meet."""

__all__ = ["ConversionError"]


class ConversionError(ValueError):
    """A network, option or input that cannot be converted; the message says why and what to do.

    The message is one sentence (or two) for the person at the keyboard: it names the layer's path and the shapes
    involved where there are any, and the way out.
    """
