"""Work that takes a processor: one of these for each core."""

from collections import Counter

import loom


class Worker(loom.Actor):
    """Counts words."""

    def count_words(self, text: str) -> dict[str, int]:
        """How often each word is in the text."""
        return dict(Counter(text.lower().split()))
