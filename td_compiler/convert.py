"""`reverse`: a bottom-up CNN in, its top-down network out."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from td_compiler.capture.skeleton import unwrapped
from td_compiler.errors import ConversionError, no_other_error
from td_compiler.layers.pyramid import Downsample
from td_compiler.network.base import TopDownNet
from td_compiler.options import Downsampler, Filters, Head, Init, Merge, Options, Stem, Task, Upsample
from td_compiler.passes import build, read, turn
from td_compiler.surroundings import neutral_surroundings, resting_collector

__all__ = ["check_source", "reverse"]


def reverse(
    model: nn.Module,
    *,
    filters: Filters = "mirror",
    merge: Merge = "combined",
    upsample: Upsample = "nearest",
    downsample: Downsample | Downsampler = "gaussian",
    stem: Stem = "trailing",
    head: Head = "full",
    head_width: int | None = None,
    init: Init = "keep",
    task: Task = "classification",
    num_classes: int | None = None,
    in_chans: int | None = None,
    fast: bool = True,
    input_size: tuple[int, int, int] | None = None,
) -> TopDownNet:
    """Turn a bottom-up CNN into its top-down network (Lelekas et al., Top-Down Networks, section 3).

    Args:
        model: a CNN that takes images (N, C, H, W) and returns class scores (N, K). It is never changed; it may live on
            any device, the meta device included, in any floating dtype. For `task="segmentation"` it may be an
            encoder that returns its last map (N, C, h, w).
        filters: `mirror` reverses the stages with their widths, `uniform` gives every unit the median width, `reversed`
            keeps the widths growing with depth (paper section 3.3).
        merge: how a scale's map and image meet: `combined`, `add` or `concat` (thesis section 3.2).
        upsample: `nearest`, `bilinear` or `transposed` (paper section 3.1).
        downsample: how the image is brought to a scale: `gaussian`, `blur`, `blurpool`, `pool`, `none`, `area`,
            `laplacian`, or a module or callable `(images (N, C, H, W), factor) -> images`.
        stem: where a stem's own downsampling is undone: `trailing`, at the end, so that the other stages keep their
            scales, or `leading`, before the first stage, as the authors do for Imagenette, at a far higher cost.
        head: at which size the layers run that stand before the head's global pooling: the image's (`full`), or that of
            the source's last map (`pooled`), to which the last map is averaged then: far cheaper where these layers
            are wide, as MobileNetV2's are. Where pooling and classifier are all the head there is, both are the same.
        head_width: widen the last unit to at least this many filters; the papers' remedy for a gap in accuracy.
        init: `keep` leaves parameters and buffers whose shape did not change as they are and draws the others, `fresh`
            draws all anew, as the model's own are drawn: by its `initialise(module)` if it has one, else as its values
            show (SPEC 8.4), He-normal where they have been trained. Numbers are drawn from a copy of torch's generator:
            they follow its seed, and it does not move, so seed anew for other weights.
        task: `classification` keeps the model's head. `segmentation` gives the network a classifier of pixels, a 1x1
            convolution `segmentation_head` on the last map, in place of the model's own classifier, if it has one
            (paper, experiment 3): images (N, C, H, W) become scores (N, num_classes, H, W).
        num_classes: the number of classes to score: the classifier is a new one, drawn as the model's, if it is not the
            model's own number; 0: none, the network returns what the classifier would read. For `segmentation` it must
            be given: the classes that a pixel can have.
        in_chans: the channels of the images, if they are to be others than the model's: the layers that read an image
            are new ones.
        fast: compute the same in less time: convolutions of upsampled and of merged maps from the small map
            (:mod:`td_compiler.layers.folding`), maps laid out channels last, dropout masks drawn four at a time, each
            where it pays. Parameters and their names do not depend on it. False: the network as it is written in the
            paper.
        input_size: (C, H, W) at which the network is read. Default: the model's own metadata, else found by trying.

    Returns:
        A trainable module with the model's parameter names, device, dtype, training mode and `requires_grad`.

    Raises:
        ConversionError: if an option is unknown, or the model has no top-down counterpart; the message says why.
    """
    options = Options(
        filters=filters,
        merge=merge,
        upsample=upsample,
        downsample=downsample,
        stem=stem,
        head=head,
        head_width=head_width,
        init=init,
        task=task,
        num_classes=num_classes,
        in_chans=in_chans,
        fast=fast,
        input_size=input_size,
    )
    with neutral_surroundings(draws=False), resting_collector():
        check_source(model)
        return _reverse(model, options)


def check_source(model: object) -> None:
    """Refuse what is no network that can be read: another object, a top-down network, lazy layers without a size.

    Raises:
        ConversionError: naming it, with the way out.
    """
    if not isinstance(model, nn.Module):
        raise ConversionError(f"model is a {type(model).__name__}, not an nn.Module: pass an instance of the network.")
    with no_other_error("the network was read"):
        for path, module in model.named_modules():
            kind = type(module).__name__
            if callable(getattr(module, "pyramid", None)) and callable(getattr(module, "forward_pyramid", None)):
                where = f"{path!r} ({kind})" if path else f"this {kind}"
                raise ConversionError(
                    f"{where} is a top-down network already: reverse the network that it was made of."
                )
            if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():  # type: ignore[misc]
                raise ConversionError(
                    f"{path or kind!r} ({kind}) is a lazy layer that has seen no image and has no size yet: run the"
                    " network once, model(images), then reverse it."
                )


def _reverse(model: nn.Module, options: Options) -> TopDownNet:
    with no_other_error("the network was read"):
        model = unwrapped(model)
    return build(turn(read(model, options.input_size, options.task), options))
