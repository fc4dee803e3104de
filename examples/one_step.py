"""Takes one training step of a network in a Python file, on a random batch: needs torch alone, not td_compiler.

tdc convert zoo:resnet32 -o resnet32_td.py
python examples/one_step.py resnet32_td.py
"""

import argparse
import runpy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn


def network_class(path: Path) -> type[nn.Module]:
    """The network of an emitted file: the last of the module classes defined there."""
    if not path.is_file():
        raise SystemExit(f"there is no file {path}")
    names = runpy.run_path(str(path), run_name=path.stem)
    classes = [value for value in names.values() if isinstance(value, type) and issubclass(value, nn.Module)]
    return [value for value in classes if value.__module__ == path.stem][-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a file that `tdc convert` wrote")
    parser.add_argument("--shape", type=int, nargs=3, default=(3, 32, 32), metavar=("C", "H", "W"))
    parser.add_argument("--lr", type=float, default=0.01)
    options = parser.parse_args()

    torch.manual_seed(0)
    network = network_class(options.file)()
    images = torch.randn(16, *options.shape)
    labels = torch.randint(network(images).shape[1], (16,))

    optimizer = torch.optim.SGD(network.parameters(), lr=options.lr, momentum=0.9, nesterov=True)
    before = F.cross_entropy(network(images), labels)
    before.backward()
    optimizer.step()
    after = F.cross_entropy(network(images), labels)

    parameters = sum(parameter.numel() for parameter in network.parameters())
    print(f"{type(network).__name__}: {parameters:,} parameters, images {tuple(images.shape)}")
    print(f"loss before the step {before.item():.4f}, after it {after.item():.4f}")


if __name__ == "__main__":
    main()
