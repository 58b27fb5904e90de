"""An input as Data: in memory, or read in passes; checked once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ...backends.products import Matrix
from ...backends.sparse import SparseMatrix
from ...distributed import ALONE, Processes
from ...planning.memory import Budget
from ..arrays import Expected
from ..dataset import Data
from ..prefetch import Prefetcher
from ..shards import Shards
from ..sources import Batches, Opened, Source, Whole, open_source, summarise
from ..sparse.codes import SPARSE
from ..summary import joined
from .first_pass import Drawing, inspected


@contextmanager
def opened(
    A: Any,
    expected: Expected,
    budget: Budget,
    processes: Processes = ALONE,
    drawing: Drawing | None = None,
) -> Iterator[Data]:
    """A as Data, in a context with the thread that reads ahead. The rows of one of several
    processes, and data for which the budget says so, are processed in chunks even if they are in
    memory. drawing: takes the rows of a pass, if there is one."""
    with Prefetcher() as prefetch:
        with processes.agreed():
            found, largest = open_source(A, expected, budget), None
        if isinstance(found, Whole):
            found, largest = found
        if drawing is not None:
            drawing.begin(_rows_in(found), processes)
        with processes.agreed():
            if isinstance(found, Shards | Batches):
                found = inspected(found, expected, budget, prefetch, drawing)
        matrix = None if isinstance(found, tuple) else found
        made_dense = budget.codes == SPARSE
        whole = not budget.chunked and not (made_dense and isinstance(matrix, SparseMatrix))
        if matrix is not None and processes.alone and whole:
            data = Data(matrix, largest)
            if made_dense:
                data.take_chunks(budget.rows_made_dense(data.n, data.dtype.itemsize))
            data.drawing = drawing
            yield data
            return
        source, summary = found if isinstance(found, tuple) else summarise(found)
        here = summary.n == 0 or (matrix is not None and budget.fits_beside(matrix))
        summaries, everywhere = zip(*processes.gather((summary, here)), strict=True)
        # with all rows in memory the fit is that of one process that has all of them
        resident = not processes.alone and all(everywhere) and whole
        resident = resident and len({part.dtype for part in summaries if part.n}) == 1
        joined(summaries)
        with processes.agreed():
            given = source, summaries, budget, prefetch, processes
            data = Data.of_source(*given, resident=resident)
        data.drawing = drawing
        yield data


def _rows_in(found: Matrix | Opened | Source) -> int | None:
    """The number of rows here, None where only a pass over them finds it."""
    if isinstance(found, Batches):
        return None
    if isinstance(found, tuple):
        return found[1].n
    return found.shape[0]
