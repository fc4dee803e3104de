"""Networks by name: `torchvision:resnet18`, `timm:NAME`, `model.py:Net`."""
