"""verify(model, td) for a td made with options, none repeated.

Today: false violations: it takes the default options, though td.report.options has the real ones.
Right: all checks pass.
Why: SPEC 9, a false alarm is a defect like a miss.
"""

from common import Resnet

from td_compiler import verify

OPTIONS = {
    "uniform": {"filters": "uniform"},
    "reversed": {"filters": "reversed"},
    "concat": {"merge": "concat"},
    "bilinear": {"upsample": "bilinear"},
    "wider head": {"head_width": 48},
    "plain form": {"fast": False},
    "segmentation": {"task": "segmentation", "num_classes": 4},
}
CASES = [(label, Resnet, (3, 32, 32), options) for label, options in OPTIONS.items()]


def check(label, model, td):
    failures = verify(model, td).failures
    assert not failures, f"verify(model, td): {failures[0]}"
