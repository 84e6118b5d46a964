"""The feature cache on disk. Needs no torch; `cache/FORMAT.md` specifies the files.

    FeatureCache ─── Catalog ─┬─ CacheFile  NAME.h5              main file: tables and vector nodes
    (reader)         digest   ├─ CacheFile  NAME--NODE.h5        companion: one node's feature map
                     → row    └─ CacheFile  NAME.h5.parts/*.h5   parts of an unfinished run

    CacheWriter ──┬─ CacheLock       one writer at a time
    (writer)      ├─ CacheState      the Catalog of what exists; `plan_run` finds what is missing
                  ├─ Committer       a thread that collects computed rows and commits them as parts
                  │    └─ PartsFolder ─ LogWriter   a part counts once the log names it
                  └─ write_cache     parts → main file and companions (consolidate)

A `CacheFile` is one HDF5 file; `open_untrusted` (validate) checks its structure before any data is read.
A `Catalog` finds the row of a digest in any of several files. `spec`, `tables` and `layout` define what is
stored and how. `merge`, `export` (convert) and `verify` work on finished caches.
"""
