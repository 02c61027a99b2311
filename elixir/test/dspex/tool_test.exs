defmodule DSPex.ToolTest do
  use ExUnit.Case, async: true
  doctest DSPex.Tool
end
