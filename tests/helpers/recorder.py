"""A reporter that keeps what it receives."""

from bottleneck.progress import Reporter


class Recorder(Reporter):
    """`told`: every message; `epochs`: every epoch record."""

    def __init__(self):
        self.told, self.epochs = [], []

    def tell(self, text):
        self.told.append(text)

    def epoch(self, record):
        self.epochs.append(record)
