"""The code that torch's compiler generates for a GPU from the engine's passes, examined without a GPU.

- `cases.py`: which passes, sizes and batches, for which GPU (`gpus.py`).
- `standins.py`: what stands in for the device. For processes of its own alone.
- `passes.py`, `lowering.py`: the engine's pass at full size becomes a program, by Inductor.
- `program.py`: reads a program: its kernels and their operands, layout copies, fallbacks, host values.
- `cubins.py`: Triton compiles the program's kernels; their registers and memory.
- `results.py`: one case in a process of its own; kept in build/ until a source changes.
- `tile_model.py`: estimates the time of each kernel.
- `kernels.json`: how many kernels of each kind a pass has at most. `python -m tests.gpu_codegen report` prints them.

`make test-gpu-codegen` installs Triton into build/, where no other test sees it: with it, torch behaves differently.
"""
