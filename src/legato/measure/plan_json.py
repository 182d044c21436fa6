"""A plan as plain values for JSON.

Knows: the names that readers rely on. Does not know: how anything in a plan came about.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from legato.measure.plan import Plan, Span, Users


def as_dict(plan: Plan) -> dict[str, Any]:
    """Expectations are numbers under the plan's own names; `ranges` has [low, high] under the same names."""
    whole = {
        name: getattr(plan, name)
        for name in (
            *("model", "family", "parameters", "active_parameters", "weights", "kv", "machine", "machine_kind"),
            *("context", "prompt", "output", "users", "weights_bytes", "kv_bytes_per_token", "kv_bytes_per_user"),
            *("kv_bytes_in_windows", "kv_bytes", "memory_bytes", "usable_bytes", "fits"),
        )
    }
    spans = {name: getattr(plan, name) for name in ("ttft_ms", "itl_ms", "tok_s", "requests_s")}
    prices = plan.price_per_million
    return {
        **whole,
        "max_users": None if plan.max_users is None else int(plan.max_users.mid),
        "machines_needed": plan.machines_needed,
        **{name: _short(span.mid) for name, span in spans.items()},
        "itl_ms_at": {str(depth): _short(span.mid) for depth, span in plan.itl_ms_at.items()},
        "itl_line": {"ms": _short(plan.itl_line[0]), "ms_per_1000_tokens": _short(plan.itl_line[1])},
        "by_users": [_users(row) for row in plan.by_users],
        "seconds_per_million": {kind: _short(span.mid) for kind, span in plan.seconds_per_million.items()},
        "price_per_million": {
            kind: None if prices is None else _short(prices[kind].mid) for kind in ("input", "output")
        },
        "output_over_input": _short(plan.output_over_input),
        "why_output_costs_more": plan.why_output_costs_more,
        "limits": {
            name: {**asdict(limit), "share": round(limit.share, 4), "parts": _shares(limit.parts)}
            for name, limit in plan.limits.items()
        },
        "ranges": {
            **{name: _range(span) for name, span in spans.items()},
            "max_users": None if plan.max_users is None else [int(plan.max_users.low), int(plan.max_users.high)],
            "itl_ms_at": {str(depth): _range(span) for depth, span in plan.itl_ms_at.items()},
            "seconds_per_million": {kind: _range(span) for kind, span in plan.seconds_per_million.items()},
            "price_per_million": None if prices is None else {kind: _range(span) for kind, span in prices.items()},
        },
        "notes": list(plan.notes),
    }


def _users(row: Users) -> dict[str, Any]:
    spans = {"itl_ms": row.itl_ms, "tok_s": row.tok_s, "ttft_ms": row.ttft_ms}
    return {
        "users": row.users,
        "fits": row.fits,
        **{name: _short(span.mid) for name, span in spans.items()},
        "output_price": None if row.output_price is None else _short(row.output_price.mid),
        "ranges": {name: _range(span) for name, span in spans.items()},
    }


def _shares(parts: Any) -> dict[str, float]:
    return {name: round(part, 4) for name, part in parts.items()}


def _range(span: Span) -> list[float]:
    return [_short(span.low), _short(span.high)]


def _short(value: float) -> float:
    """Four significant digits: no prediction has more."""
    return float(f"{value:.4g}")
