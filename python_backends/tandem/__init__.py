"""Tandem: disaggregated prefill and decode on Triton Inference Server."""

__version__ = "0.1.0"
