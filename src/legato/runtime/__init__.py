"""Integers to arrays (`pack`) and logits to ids (`sampler`): the two borders, and the `Runner` that joins them.

Knows: plans, batches, executors. Does not know: HTTP, text, who scheduled a plan.
"""
