"""Padding of a step's shapes to a few sizes, on a CPU.

oneDNN, which computes products, keeps a compiled kernel with its scratch memory for each of the last 1,024 shapes that
it saw, and a packed step has a new number of tokens nearly every time. Rounding up costs at most a sixteenth more rows
in the linear layers, none below 32, and at most a quarter in decoding attention.
"""

STEPS_PER_OCTAVE = 16
ATTENTION_STEPS_PER_OCTAVE = 4  # rows and widths make a shape together, so each must have fewer sizes


def padded_size(size: int, steps_per_octave: int = STEPS_PER_OCTAVE) -> int:
    """Return the smallest allowed size of at least `size`: between two powers of two there are so many."""
    step = max(1, (1 << (max(size, 1) - 1).bit_length()) // 2 // steps_per_octave)
    return -(-size // step) * step
