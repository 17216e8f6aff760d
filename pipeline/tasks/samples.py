"""Which examples of a set people are shown."""


def sample_places(total: int, count: int = 5) -> list[int]:
    """Places of a few examples, evenly spread over a set."""
    return sorted({total * (2 * i + 1) // (2 * count) for i in range(count)})
