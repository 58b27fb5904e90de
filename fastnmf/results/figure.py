"""A matplotlib figure that a notebook displays by itself; without pyplot, so that nothing displays
it a second time. Imports matplotlib: it is imported where something is drawn."""

from __future__ import annotations

import io
import struct

from matplotlib import figure

# dots per inch of a picture in a notebook, twice those that are shown
_DPI = 200


class Figure(figure.Figure):
    """A Figure whose representation in notebooks is its picture.

    IPython displays a matplotlib Figure as a picture only after pyplot was imported; then its own
    function is called instead of this one.
    """

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=_DPI)
        picture = file.getvalue()
        # behind its signature and the name of its first part
        width, height = struct.unpack(">II", picture[16:24])
        return picture, {"width": width // 2, "height": height // 2}
