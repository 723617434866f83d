import io

import numpy as np
from PIL import Image

from privgen.io.plots import as_image, new_figure, new_panels, png_bytes, png_uri


def drawn():
    figure = new_figure(2, 1)
    figure.add_subplot().plot([0, 1], [0, 1], color="red")
    return figure


def test_the_same_figure_gives_the_same_bytes():
    written = png_bytes(drawn(), dpi=50)
    assert written == png_bytes(drawn(), dpi=50)
    with Image.open(io.BytesIO(written)) as picture:
        assert "Software" not in picture.info
        assert picture.size == (100, 50)
        assert np.array_equal(np.asarray(picture.convert("RGB")), np.asarray(as_image(drawn(), dpi=50)))


def test_panels_fill_rows():
    figure, panels = new_panels(5, columns=3, width=2, height=1)
    assert figure.get_size_inches().tolist() == [6, 2]
    assert [axes.get_subplotspec().rowspan.start for axes in panels] == [0, 0, 0, 1, 1]
    assert len(new_panels(1, columns=3, width=2, height=1)[0].axes) == 1


def test_a_data_uri():
    assert png_uri(b"any") == "data:image/png;base64,YW55"
