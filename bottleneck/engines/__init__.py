"""Run an extractor fast: onnxruntime or torch, each compared with eager float32 before it is used.

    base.build_engine(make_extractor, example images)
        candidates: pairs of engine and precision, the fastest first
            │
            ├─► onnxruntime   float32: exported once, then stored        onnx_engine, onnx_graph
            │                 int8: quantised with the example images    onnx_engine
            └─► torch         eager or compiled, on CPU, CUDA or MPS     torch_engine
            │
        compare with the rows of some example images in eager float32    reference
            │
        within the bound of its precision? ── yes ─► return the engine
            └─ no, or it failed: log a warning and try the next; after the last, raise EngineError

The exported graph is stored together with its probe images and their reference rows. A later run compares
them again and needs neither the network nor torch. `device` finds the device.
"""
