defmodule DSPex.Adapters.PythonPoolV2 do
  @moduledoc """
  An adapter that runs programs in the workers of the default pool. Add
  `{DSPex.PythonBridge.SessionPoolV2, workers: 4}` to a supervisor of the application.

  It answers as `DSPex.Adapters.PythonPort` does: programs that it creates exist in all workers.
  """

  @behaviour DSPex.Adapters.Adapter

  alias DSPex.PythonBridge.SessionPoolV2, as: Pool

  @impl true
  def create_program(config) do
    with {:ok, %{"program_id" => id}} <- Pool.execute_anonymous(:create_program, config),
         do: {:ok, id}
  end

  @impl true
  def execute_program(program_id, inputs, options \\ %{}) do
    args = %{program_id: program_id, inputs: inputs, options: options}
    Pool.execute_anonymous(:execute_program, args)
  end

  @impl true
  def list_programs do
    with {:ok, %{"programs" => programs} = listed} <- Pool.execute_anonymous(:list_programs) do
      {:ok, Enum.map(programs, & &1["program_id"]) ++ Map.get(listed, "registered", [])}
    end
  end

  @impl true
  def delete_program(program_id) do
    with {:ok, _} <- Pool.execute_anonymous(:delete_program, %{program_id: program_id}), do: :ok
  end

  @impl true
  def get_program_info(program_id) do
    Pool.execute_anonymous(:get_program_info, %{program_id: program_id})
  end

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
