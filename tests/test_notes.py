"""Codes of notes are stable words, on which programs that read `--json` depend. New ones are added here."""

import ast
import re
from pathlib import Path

import bottleneck

CODES = """
batchnorm-statistics-kept blank-labels c-at-grid-end c-grid-extended cache-extended cache-source-changed
cache-uploaded candidates-left-out characters-not-drawn choice-kept chosen chosen-without-val
class-for-most-samples class-in-one-group class-named-like-split class-named-unknown
class-shares-left-out classes-merged classes-not-measured classes-without-training-samples
column-found-by-other-spelling column-passed-over columns-renamed copies-across-splits
copies-labelled-twice copies-left-out coverage-off coverage-without-flip decoding-not-scaled decoding-scaled
dependencies-missing disk-nearly-full
engine-forced epochs-extended explained-approximately extraction-unfinished fast-is-fp32 fewer-folds
fewer-shots fewer-suggestions file-kept-aside files-ignored first-node-alone fitted-on-val flip-computed
flip-left-out flip-of-the-model fold-with-one-class folders-within-classes folders-not-writable
file-beside-damaged folders-without-images foreign-files-left head-kept head-without-checksum
heads-left-out host-given-up images-failed images-in-other-shards
images-kept images-not-kept images-not-measured images-not-shown images-outside-classes
images-unread images-unreadable images-without-prediction input-scales int8-float-layers joined-as-json
joined-by-other-separator judged-approximately label-rows-without-sample
label-separator-unused labels-hard-to-judge labels-look-like-several labels-not-judged labels-not-used
labels-of-all-samples last-batch-joined last-layer-ignored last-layer-of-other-classes
layout-class-split lease-taken-over leep-not-computed left-out-in-features
loss-diverged map-in-float32 map-of-stopped-merge map-precision
map-sampled measured-on-train mistakes-not-explained model-not-measured names-not-found names-of-several
namesake-installed
nan-labels neighbours-sampled network-converted-to-float32 network-not-shown no-cross-validation
no-label-column no-labels no-neighbours no-test node-alias node-in-fp32
node-in-other-precision not-converged not-finetuned
not-installed numbers-beside-text one-answer one-train-sample-left options-unused other-version-installed
overlay-reduced overlays-of-before page-too-large part-damaged passes-halved
paths-found-by-other-spelling picture-not-shown plan-kept plan-written precision-not-recorded
precision-of-cache
rare-classes ray-batches-reduced ray-local ray-not-used ray-workers ray-workers-lost ray-workers-refused
ray-workers-unstarted reference-images reject-rate-off remembered-column-missing remembered-columns
repeated-rows repeats-left-out report-left-out report-not-written report-of-best report-of-one-cache
requests-retried rows-damaged rows-kept-unread rows-mended
rows-of-nan rows-of-same-images rows-removed run-resumed runs-reused
samples-damaged samples-drawn samples-left-out samples-limited samples-not-used samples-unlabelled
samples-without-label-row secrets-in-keys shard-labels shard-splits-not-used shard-taken
shards-missing sheet-numbered sheet-shortened sizes-differ source-moved split-chose-the-model
split-column-unused split-folder-not-used splits-changed splits-from-shard-names splits-merged
staging-replaced staging-reused
start-faint start-fitted-again start-rounded target-by-other-name target-chosen test-not-suggested
thumbnails-left-out trained-on training-images-unknown trust-not-exported unfreeze-every-not-used
unknown-classes unknown-images-known unknown-images-of-known-classes unknown-nearer-than-known
val-chose-the-epoch val-taken-from-train views-left-out views-not-used views-unread
weights-converted-to-float32 weights-entries-ignored weights-entry-chosen weights-prefix-removed
wrapping-folder
"""


def codes_in(path: Path) -> set[str]:
    """The first arguments of all calls of `Note` in a file that are texts."""
    calls = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
    notes = [call.args[0] for call in calls if getattr(call.func, "id", "") == "Note" and call.args]
    return {code.value for code in notes if isinstance(code, ast.Constant)}


def test_no_code_is_renamed_or_lost():
    found = set().union(*map(codes_in, Path(bottleneck.__file__).parent.rglob("*.py")))
    assert found == set(CODES.split())


def test_codes_are_words_joined_by_hyphens():
    assert [code for code in CODES.split() if not re.fullmatch(r"[a-z0-9]+(-[a-zA-Z0-9]+)*", code)] == []
