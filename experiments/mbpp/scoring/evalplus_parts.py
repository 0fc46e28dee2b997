"""EvalPlus, without what the study does not use of it.

Its modules import, at their top, three packages that fetch data sets and its own generation, with
all the clients of that. The study has its data in a file and its generations from headrace, so
empty modules stand in for these four, and neither is installed.
"""
import sys
import types

UNUSED = {"datasets": ["load_dataset"], "wget": ["download"], "tempdir": ["TempDir"],
          "evalplus.codegen": ["run_codegen"]}


def _refuse(*_, **__):
    raise RuntimeError("EvalPlus wants to fetch or generate something; all it may use is local")


for _name, _members in UNUSED.items():
    _module = types.ModuleType(_name)
    for _member in _members:
        setattr(_module, _member, _refuse)
    sys.modules.setdefault(_name, _module)

from evalplus import __version__ as VERSION  # noqa: E402
from evalplus.data import get_mbpp_plus, get_mbpp_plus_hash  # noqa: E402
from evalplus.eval import MBPP_OUTPUT_NOT_NONE_TASKS  # noqa: E402
from evalplus.evaluate import check_correctness, get_groundtruth  # noqa: E402
from evalplus.sanitize import sanitize  # noqa: E402

__all__ = ["MBPP_OUTPUT_NOT_NONE_TASKS", "VERSION", "check_correctness", "get_groundtruth",
           "get_mbpp_plus", "get_mbpp_plus_hash", "sanitize", "forget_unused"]


def forget_unused():
    """For the process of a candidate: it finds no module that is not installed."""
    for name in UNUSED:
        sys.modules.pop(name, None)
