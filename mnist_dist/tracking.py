"""Tracking."""

from mnist_dist import runs
from mnist_dist.distributed import together


class Tracker:
    def __init__(self, accelerator, folder, settings):
        self.accelerator, self.folder, self.lines = accelerator, folder, []
        with together():
            if accelerator.is_main_process:
                runs.write_json(folder / runs.CONFIG, settings)

    def curve(self, step, values):
        pass

    def epoch(self, line):
        self.lines.append(line)
        with together(self.accelerator):
            if self.accelerator.is_main_process:
                runs.append_json(self.folder / runs.METRICS, line)

    def finish(self, result, samples):
        pass
