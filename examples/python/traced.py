"""DSPy programs whose spans go to the file that SPANS names, one JSON object a line.

    SPANS=spans.jsonl python -m bridge worker --adapter traced:adapter --telemetry

Needs opentelemetry-sdk. In earnest an OTLPSpanExporter stands in the place of the file, or
`opentelemetry-instrument python -m bridge worker --telemetry` sets it all up.
"""

import os

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from bridge.adapters.dspy import adapter

spans = open(os.environ["SPANS"], "a")  # noqa: SIM115  # open as long as the worker lives
exporter = ConsoleSpanExporter(out=spans, formatter=lambda span: span.to_json(indent=None) + "\n")
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)

__all__ = ["adapter"]
