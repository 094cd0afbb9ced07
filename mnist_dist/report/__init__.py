"""A page for each run: one self-contained HTML file that shows what was trained, and how well.

`page/` holds what a browser reads: HTML, CSS and JavaScript, which `document` puts into one file
together with the run's own figures, test images and weights.
"""

from mnist_dist.report.ending import at_end

__all__ = ["at_end"]
