defmodule DSPex.Adapters.PythonPort do
  @moduledoc """
  An adapter that runs programs in the worker of the default bridge. Add
  `{DSPex.PythonBridge.Bridge, []}` to a supervisor of the application.

  `DSPex.Adapters.Commands` describes the functions for DSPy's other commands.
  """

  use DSPex.Adapters.Commands

  alias DSPex.PythonBridge.{Bridge, Error}

  @doc "Calls any command; see `DSPex.PythonBridge.Bridge.call/3`."
  @spec call(Bridge.command(), Bridge.args(), timeout() | keyword()) :: Bridge.result()
  def call(command, args, options), do: Bridge.call(command, args, options)

  @doc "Returns a stream of the events of a call; see `DSPex.PythonBridge.Bridge.stream/3`."
  @spec stream(Bridge.command(), Bridge.args(), timeout() | keyword()) :: Enumerable.t()
  def stream(command, args, options \\ :infinity), do: Bridge.stream(command, args, options)

  @impl true
  def health_check do
    case Bridge.call(:ping) do
      {:ok, %{"status" => "ok"}} ->
        :ok

      {:ok, other} ->
        {:error, Error.new(:internal, "the worker does not report status ok", other)}

      {:error, error} ->
        {:error, error}
    end
  end

  @impl true
  def get_stats, do: Bridge.call(:get_stats)

  @impl true
  def supports_test_layer?(layer), do: layer == :layer_3

  @impl true
  def get_test_capabilities do
    %{
      python_execution: true,
      real_ml_models: true,
      protocol_validation: true,
      deterministic_outputs: false,
      performance: :slowest
    }
  end
end
