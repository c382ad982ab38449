"""The parts of `benchmarks/gpu_check.py`: measurements on one device, at a size that is given. None of them
imports Ray, and every one also runs on a CPU at size `tiny`.
"""
