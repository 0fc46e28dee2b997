"""Minimum, median and maximum of what the rounds of a benchmark gave."""
import statistics


def text(values, digits=2):
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{low:.{digits}f} / {middle:.{digits}f} / {high:.{digits}f}"


def ratios(above, below):
    """Of the values of each round."""
    return [a / b for a, b in zip(above, below)]


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)
