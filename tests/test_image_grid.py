"""Several images as one."""

from PIL import Image

from janus_hf.image_grid import image_grid


def test_grid_reads_row_by_row():
    images = [Image.new("RGB", (4, 2), (i, i, i)) for i in range(3)]
    grid = image_grid(images)
    assert grid.size == (8, 4)
    assert [grid.getpixel(at)[0] for at in ((0, 0), (4, 0), (0, 2))] == [0, 1, 2]
    assert grid.getpixel((4, 2)) == (255, 255, 255)
    assert image_grid(images, columns=3, background="black").size == (12, 2)
