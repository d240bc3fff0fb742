"""Benchmark tasks: the table of VTAB-1k and FGVC, and reading, checking and finding them on disk."""

from vprompt.data.benchmarks.check import check, check_lists
from vprompt.data.benchmarks.lists import Layout, Problem, read_layout, recognise
from vprompt.data.benchmarks.places import Place, data_root, find_task_folder, locate
from vprompt.data.benchmarks.tasks import BenchmarkTask, Transforms, benchmark_tasks, find_task, transforms_of
from vprompt.data.preprocessing import Augment

__all__ = [
    "Augment",
    "BenchmarkTask",
    "Layout",
    "Place",
    "Problem",
    "Transforms",
    "benchmark_tasks",
    "check",
    "check_lists",
    "data_root",
    "find_task",
    "find_task_folder",
    "locate",
    "read_layout",
    "recognise",
    "transforms_of",
]
