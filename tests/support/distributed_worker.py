"""One of the processes that train a network together; it imports neither the tests nor the networks' libraries."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from td_compiler import TopDownNet

PROCESSES = 2


def step(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The scores (N, K) of images (N, C, H, W); adds the gradients of something that each of them has a part in."""
    scores: torch.Tensor = network(images)
    scores.square().mean().backward()
    return scores.detach()


def shard(network: TopDownNet, mesh: DeviceMesh) -> None:
    """FSDP2, a group of parameters for each stage; what no layer holds belongs to the network."""
    network.to(memory_format=torch.contiguous_format)  # FSDP takes no other
    for segment in network.segments:
        paths = dict.fromkeys(
            str(node.target) for node in segment.graph.find_nodes(op="call_module")
        )  # same order in all
        layers = [network.get_submodule(path) for path in paths]
        fully_shard([layer for layer in layers if next(layer.parameters(), None) is not None], mesh=mesh)
    fully_shard(network, mesh=mesh)


def gradients(network: nn.Module) -> dict[str, torch.Tensor]:
    found = {}
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        gradient = parameter.grad
        found[name] = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
    return found


def work(rank: int, folder: Path) -> None:
    """Take one step of every network in a folder, on this process's part of the images; write the gradients.

    Does not return where all went well: the process ends with status 0.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder / 'meeting'}", rank=rank, world_size=PROCESSES)
    mesh = init_device_mesh("cpu", (PROCESSES,))
    images = torch.load(folder / "images.pt", weights_only=True).chunk(PROCESSES)[rank]
    for file in sorted(folder.glob("*.network")):
        found = {}
        network = torch.load(file, weights_only=False)
        step(DistributedDataParallel(network), images)
        found["ddp"] = gradients(network)
        network = torch.load(file, weights_only=False)
        shard(network, mesh)
        step(network, images)
        found["fsdp"] = gradients(network)
        if rank == 0:
            torch.save(found, file.with_suffix(".gradients"))
    dist.barrier()  # none leaves while another still talks
    # Gloo's threads let go of the tensors of a finished call when the call has long returned, and Torch's caches of
    # meshes keep those threads beyond `destroy_process_group`. A thread that then asks for the lock of an interpreter
    # that is ending is stopped in the middle of a destructor, which aborts the process: so no interpreter ends here.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
