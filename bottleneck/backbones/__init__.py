"""Networks whose inner tensors can be cached, and whose upper part can be trained.

    name ──► registry.load_backbone ──► Backbone: module, preprocess, recipe
                │                          │
                ├ families: the networks   ├ graph: every inner tensor as a named node
                └ weights: their files     └ blocks: the stages from stem to classifier
                                              a network of five blocks, of which two are unfrozen:

    pixels ─► stem ─► block ─► block ─┬─► block ─► block ─► pool ─► head
              └──────── trunk ────────┘   └──── section ─────┘
               extractor: runs once,     section: is trained on
               its output is cached      the cached map

A *node* is the name of a tensor ("layer3", or NODE@POOL for its pooled form). The *trunk* is the part of the
network below a node, and `extractor` wraps it, with normalisation and pooling, into the module that engines
run. A *section* is the part between a cached map and the head's node.

`recipe` records how to rebuild a backbone, and `model_file` stores a fine-tuned one. `batchnorm` explains
frozen and calibrated statistics, `inspect` lists and freezes parts, `patches` shows what channels respond to.
"""
