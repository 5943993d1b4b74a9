"""From the models of `kumulus.api` to what the API server and people read: CRDs and the reference.

`python -m kumulus.crdgen` writes `crds/` and `docs/reference/`; `--check` only compares. The output
depends on the models alone, so the same models give the same bytes.
"""
