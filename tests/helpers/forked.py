"""Processes that a test starts, and may kill: forks of one process that has imported torch and the package.

An import of torch takes seconds of processor time; a fork of what has imported it takes none.
"""

from multiprocessing import get_context

IMPORTED = ["bottleneck.studies.transfer_study.study", "tests.helpers.killed_training"]


def started(function, *arguments, **options):
    """Call a function of a module in a new process; return that `Process`, which is to be joined."""
    context = get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    process = context.Process(target=function, args=arguments, kwargs=options)
    process.start()
    return process


def exit_code(function, *arguments, **options):
    """Call a function of a module in a new process; return its exit code: −9 where it was killed."""
    process = started(function, *arguments, **options)
    process.join()
    return process.exitcode
