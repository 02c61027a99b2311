defmodule DSPex.Adapters.PythonPoolV2 do
  @moduledoc """
  An adapter that runs programs in the workers of the default pool. Add
  `{DSPex.PythonBridge.SessionPoolV2, workers: 4}` to a supervisor of the application.

  It answers as `DSPex.Adapters.PythonPort` does: programs that it creates, imports or optimizes exist in
  all workers. `DSPex.Adapters.Commands` describes the functions for DSPy's other commands.
  """

  use DSPex.Adapters.Commands

  alias DSPex.PythonBridge.SessionPoolV2, as: Pool

  @doc """
  Calls any command; see `DSPex.PythonBridge.SessionPoolV2.execute_anonymous/3`. With the option
  `:session_id` it is one of that session.
  """
  @spec call(Pool.command(), Pool.args(), timeout() | keyword()) :: Pool.result()
  def call(command, args, options), do: Pool.execute_anonymous(command, args, options)

  @doc "Returns a stream of the events of a call; see `DSPex.PythonBridge.SessionPoolV2.stream/3`."
  @spec stream(Pool.command(), Pool.args(), timeout() | keyword()) :: Enumerable.t()
  def stream(command, args, options \\ :infinity), do: Pool.stream(command, args, options)

  @impl true
  def health_check do
    with {:ok, _} <- Pool.health_check(), do: :ok
  end

  @impl true
  def get_stats, do: Pool.get_stats()

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
