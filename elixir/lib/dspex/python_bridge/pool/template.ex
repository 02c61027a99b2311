defmodule DSPex.PythonBridge.Pool.Template do
  @moduledoc """
  Runs `python -m bridge serve`: a process that has loaded the adapter, and gives a forked worker to
  each connection to its socket.
  """

  def subscribe(nil), do: nil
  def connected(options, nil, _address), do: options
end
