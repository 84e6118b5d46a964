"""Run an extractor fast: onnxruntime, OpenVINO or torch, each compared with eager float32 before it is used.

    base.build_engine(make_extractor, example images)
        groups of candidates, pairs of engine and precision
            │
            ├─► onnxruntime   float32: exported once, then stored        graph_engine, onnx_graph, runtimes
            ├─► openvino      int8: quantised with the example images    int8
            │                 bfloat16 where the processor has units for it (openvino)
            └─► torch         eager or compiled, on CPU, CUDA or MPS     torch_engine
            │
        compare with the rows of some example images in float32          reference
            │
        within the bound of its precision? ── yes ─► of a group the fastest is returned and remembered    race
            └─ no, or it failed: log a warning and try the next; after the last, raise EngineError

The exported graph is stored together with its probe images and their reference rows. A later run compares
them again and needs neither the network nor torch. `device` finds the device.
"""
