"""Verdicts of EvalPlus 0.3.1 on generated MBPP programs, each program in a sandbox of its own."""
