"""The pipeline: from a captured bottom-up network to its top-down counterpart, one step a file.

`PIPELINE` is all of it, in order. SPEC's rules and where they are kept:

| rule | pass |
| --- | --- |
| 1.1 paths on an axis of their own | `sum_paths` |
| 1.0 prologue | `find_prologue` |
| 1.1 channels and sizes | `trace_channels` |
| 1.0 paddings | `adopt_padding` |
| 1.2 units between cut points, 1.3 downsampling | `find_units` |
| 2.13 two tensors between units | `find_cells`, which `find_units` calls |
| 1.4 stem, 1.5 head, stages | `find_stages` |
| 2.3 order, 2.7 stem downsampling | `reverse_stages` |
| 6.5 a classifier of pixels | `replace_head` |
| 2.6 filters and kernel sizes | `arrange_filters` |
| 2.4 projections of transition blocks | `match_shortcuts` |
| 2.4 strides and poolings, 2.8 sizes, 2.9 upsampling | `replace_downsampling` |
| 2.4 plain transitions | `insert_transitions` |
| 2.1 pyramid, 2.2 entries | `insert_entries` |
| 2.5 merges | `insert_merges` |
| 2.6 widths through every operator | `set_widths`, `prune` |
| 2.6 sizes written as numbers | `rewrite_sizes` |
| 2.14 layers and weights used twice | `split_layers`, `tie_weights` |
| initial weights, 2.14 parametrised ones | `build_layers` |
| 2.10 the cost: the same numbers in less time | `fold_upsampling`, `choose_layout`, `replace_dropout` |
| 2.10 the network and its report | `assemble` |
"""

from td_compiler.graph.states import Pass
from td_compiler.passes.adopt_padding import AdoptPadding
from td_compiler.passes.arrange_filters import ArrangeFilters
from td_compiler.passes.assemble import Assemble
from td_compiler.passes.build_layers import BuildLayers
from td_compiler.passes.choose_layout import ChooseLayout
from td_compiler.passes.find_prologue import FindPrologue
from td_compiler.passes.find_stages import FindStages
from td_compiler.passes.find_units import FindUnits
from td_compiler.passes.fold_upsampling import FoldUpsampling
from td_compiler.passes.insert_entries import InsertEntries
from td_compiler.passes.insert_merges import InsertMerges
from td_compiler.passes.insert_transitions import InsertTransitions
from td_compiler.passes.match_shortcuts import MatchShortcuts
from td_compiler.passes.replace_downsampling import ReplaceDownsampling
from td_compiler.passes.replace_dropout import ReplaceDropout
from td_compiler.passes.replace_head import ReplaceHead
from td_compiler.passes.reverse_stages import ReverseStages
from td_compiler.passes.rewrite_sizes import RewriteSizes
from td_compiler.passes.set_widths import SetWidths
from td_compiler.passes.split_layers import SplitLayers
from td_compiler.passes.sum_paths import SumPaths
from td_compiler.passes.tie_weights import TieWeights
from td_compiler.passes.trace_channels import TraceChannels

__all__ = ["PIPELINE"]

PIPELINE: tuple[Pass, ...] = (
    SumPaths(),
    FindPrologue(),
    TraceChannels(),
    AdoptPadding(),
    FindUnits(),
    FindStages(),
    ReverseStages(),
    ReplaceHead(),
    ArrangeFilters(),
    MatchShortcuts(),
    ReplaceDownsampling(),
    InsertTransitions(),
    InsertEntries(),
    InsertMerges(),
    SetWidths(),
    RewriteSizes(),
    SplitLayers(),
    BuildLayers(),
    TieWeights(),
    FoldUpsampling(),
    ReplaceDropout(),
    ChooseLayout(),
    Assemble(),
)
