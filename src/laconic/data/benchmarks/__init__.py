"""Benchmark tasks: the table of VTAB-1k and FGVC, and reading, checking and finding them on disk."""

from laconic.data.benchmarks.check import check, check_lists
from laconic.data.benchmarks.layout import Layout, read_layout, recognise
from laconic.data.benchmarks.places import Place, data_root, find_task_folder, locate
from laconic.data.benchmarks.problem import Problem
from laconic.data.benchmarks.table import Augment, BenchmarkTask, Transforms, benchmark_tasks, find_task, transforms_of

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
