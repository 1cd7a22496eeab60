# SPDX-License-Identifier: Apache-2.0
"""Makes torch quick to load, and to leave, for a script that imports this before it.

Optimizers and DDP import ``torch._dynamo`` when they are built, only to be left alone by it. That takes a worker about
as long as torch itself, and nothing that these tests train is compiled; whoever wants more of it gets the real one. And
the garbage collector looks through all of torch several times, last when the process ends: another half.
"""

import gc
import importlib
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any, Final

NAME: Final = "torch._dynamo"


class _Absent(ModuleType):
    """What eager code asks of the compiler; it gives way to the real one as soon as anything else is asked of it."""

    trace_rules = SimpleNamespace(clear_lru_cache=lambda: None)  # when a process group is made
    utils = SimpleNamespace(get_optimize_ddp_mode=lambda: "ddp_optimizer")  # its default, when DDP is made

    @staticmethod
    def disable(function: Callable[..., Any], *rest: Any, **how: Any) -> Callable[..., Any]:
        return function

    @staticmethod
    def graph_break() -> None:
        return None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system asks for these, and does without
            raise AttributeError(name)
        del sys.modules[NAME]
        return getattr(importlib.import_module(NAME), name)


sys.modules.setdefault(NAME, _Absent(NAME))
gc.disable()
importlib.import_module("torch")
gc.freeze()
gc.enable()
