"""DSPy programs whose spans are written to the file named by SPANS, one JSON object per line.

    SPANS=spans.jsonl python -m bridge worker --adapter traced:adapter --telemetry

Needs opentelemetry-sdk. In production, use an OTLPSpanExporter instead of the file, or
`opentelemetry-instrument python -m bridge worker --telemetry`, which configures everything.
"""

import os

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from bridge.adapters.dspy import adapter

spans = open(os.environ["SPANS"], "a")  # noqa: SIM115  # open until the worker ends
exporter = ConsoleSpanExporter(out=spans, formatter=lambda span: span.to_json(indent=None) + "\n")
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)

__all__ = ["adapter"]
