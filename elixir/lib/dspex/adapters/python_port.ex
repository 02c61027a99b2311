defmodule DSPex.Adapters.PythonPort do
  @moduledoc """
  An adapter that runs programs in the worker of the default bridge. Add
  `{DSPex.PythonBridge.Bridge, []}` to a supervisor of the application.
  """

  @behaviour DSPex.Adapters.Adapter

  alias DSPex.PythonBridge.{Bridge, Error}

  @impl true
  def create_program(config) do
    with {:ok, %{"program_id" => id}} <- Bridge.call(:create_program, config), do: {:ok, id}
  end

  @impl true
  def execute_program(program_id, inputs, options \\ %{}) do
    Bridge.call(:execute_program, %{program_id: program_id, inputs: inputs, options: options})
  end

  @impl true
  def list_programs do
    with {:ok, %{"programs" => programs} = listed} <- Bridge.call(:list_programs) do
      {:ok, Enum.map(programs, & &1["program_id"]) ++ Map.get(listed, "registered", [])}
    end
  end

  @impl true
  def delete_program(program_id) do
    with {:ok, _} <- Bridge.call(:delete_program, %{program_id: program_id}), do: :ok
  end

  @impl true
  def get_program_info(program_id) do
    Bridge.call(:get_program_info, %{program_id: program_id})
  end

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
