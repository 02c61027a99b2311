defmodule DSPex.Adapters.Mock do
  @moduledoc """
  An adapter without a worker, for tests. It generates answers from the types in the signature and
  the inputs; equal inputs give equal answers.

  The mock starts at the first call, or under a supervisor. `inject_error/2` makes a command fail,
  `set_response/2` sets the value of an output field, and `reset/0` deletes programs and settings.
  """

  @behaviour DSPex.Adapters.Adapter

  use Agent

  alias DSPex.PythonBridge.Error

  @empty %{programs: %{}, errors: %{}, responses: %{}, created: 0, executed: 0}

  @doc false
  @spec start_link(keyword()) :: Agent.on_start()
  def start_link(_options \\ []), do: Agent.start_link(fn -> @empty end, name: __MODULE__)

  @doc "Deletes all programs, errors and responses."
  @spec reset() :: :ok
  def reset, do: run(nil, fn _ -> {:ok, @empty} end)

  @doc """
  Makes a command, such as `:execute_program`, fail until `reset/0` or until the error is `nil`.
  """
  @spec inject_error(atom(), Error.t() | nil) :: :ok
  def inject_error(command, error), do: run(nil, &{:ok, put_in(&1.errors[command], error)})

  @doc "Sets the value of an output field in all further results."
  @spec set_response(atom() | String.t(), term()) :: :ok
  def set_response(field, value) do
    run(nil, &{:ok, put_in(&1.responses[to_string(field)], value)})
  end

  @impl true
  def create_program(config) do
    run(:create_program, fn state ->
      id = value(config, :id) || "mock_program_#{state.created + 1}"
      signature = value(config, :signature)
      if_exists = to_string(value(config, :if_exists) || "error")

      cond do
        signature == nil ->
          {failure(:invalid_args, "Program signature is required"), state}

        is_map_key(state.programs, id) and if_exists == "keep" ->
          {{:ok, id}, state}

        is_map_key(state.programs, id) and if_exists == "error" ->
          {failure(:program_exists, "Program with ID '#{id}' already exists"), state}

        true ->
          program = %{
            "program_id" => id,
            "signature" => signature,
            "program_type" => value(config, :program_type) || "predict",
            "created_at" => DateTime.to_iso8601(DateTime.utc_now()),
            "execution_count" => 0
          }

          {{:ok, id}, %{put_in(state.programs[id], program) | created: state.created + 1}}
      end
    end)
  end

  @impl true
  def execute_program(program_id, inputs, _options \\ %{}) do
    with_program(:execute_program, program_id, fn program, state ->
      outputs =
        for field <- fields(value(program["signature"], :outputs)), into: %{} do
          name = value(field, :name)

          {name,
           Map.get_lazy(state.responses, name, fn -> made_up(name, type(field), inputs) end)}
        end

      result = %{"program_id" => program_id, "outputs" => outputs, "model" => "mock"}
      state = update_in(state.programs[program_id]["execution_count"], &(&1 + 1))
      {{:ok, result}, %{state | executed: state.executed + 1}}
    end)
  end

  @impl true
  def list_programs do
    run(:list_programs, &{{:ok, &1.programs |> Map.keys() |> Enum.sort()}, &1})
  end

  @impl true
  def delete_program(program_id) do
    with_program(:delete_program, program_id, fn _program, state ->
      {:ok, %{state | programs: Map.delete(state.programs, program_id)}}
    end)
  end

  @impl true
  def get_program_info(program_id) do
    with_program(:get_program_info, program_id, fn program, state -> {{:ok, program}, state} end)
  end

  @impl true
  def health_check, do: run(:health_check, &{:ok, &1})

  @impl true
  def get_stats do
    run(:get_stats, fn state ->
      {{:ok,
        %{
          "adapter" => "mock",
          "programs_count" => map_size(state.programs),
          "programs_created" => state.created,
          "executions" => state.executed
        }}, state}
    end)
  end

  @impl true
  def supports_test_layer?(layer), do: layer == :layer_1

  @impl true
  def get_test_capabilities do
    %{
      python_execution: false,
      real_ml_models: false,
      protocol_validation: false,
      deterministic_outputs: true,
      error_injection: true,
      performance: :fastest
    }
  end

  defp run(command, update) do
    with {:error, {:already_started, _}} <- Agent.start(fn -> @empty end, name: __MODULE__),
         do: :ok

    Agent.get_and_update(__MODULE__, fn state ->
      case state.errors do
        %{^command => %Error{} = error} -> {{:error, error}, state}
        _ -> update.(state)
      end
    end)
  end

  defp with_program(command, program_id, update) do
    run(command, fn state ->
      case state.programs do
        %{^program_id => program} -> update.(program, state)
        _ -> {failure(:program_not_found, "Program not found: #{program_id}"), state}
      end
    end)
  end

  defp failure(code, message), do: {:error, Error.new(code, message)}

  # Configs and signatures have atom or string keys; fields are a list, or a map by name.
  defp value(map, key), do: Map.get(map, key) || Map.get(map, Atom.to_string(key))

  defp fields(nil), do: []
  defp fields(fields) when is_list(fields), do: fields

  defp fields(fields),
    do: for({name, field} <- fields, do: Map.put(field, "name", to_string(name)))

  defp type(field), do: to_string(value(field, :type) || "string")

  defp made_up(name, type, inputs) do
    seed = :erlang.phash2({name, inputs}, 1_000)

    case type do
      "int" <> _ -> seed
      type when type in ["float", "number"] -> seed / 10
      type when type in ["probability", "confidence_score"] -> seed / 1_000
      "bool" <> _ -> rem(seed, 2) == 0
      type when type in ["embedding"] -> for(n <- 1..3, do: (seed + n) / 1_000)
      "list<" <> inner -> [made_up(name, String.trim_trailing(inner, ">"), inputs)]
      "dict" <> _ -> %{}
      _ -> "mock_#{name}_#{seed}"
    end
  end
end
