defmodule DSPex.Adapters.Adapter do
  @moduledoc """
  What runs programs: `DSPex.Adapters.PythonPort` with a worker, `DSPex.Adapters.Mock` without one.

  An application takes the module from its configuration, and its tests run with the mock:

      adapter = Application.get_env(:my_app, :dspy, DSPex.Adapters.PythonPort)
      {:ok, id} = adapter.create_program(%{signature: DSPex.Signature.new("question -> answer")})
      {:ok, %{"outputs" => %{"answer" => _}}} = adapter.execute_program(id, %{question: "Why?"})
  """

  @type program_id :: String.t()
  @typedoc """
  `:signature` (see `DSPex.Signature`), and `:id`, `:program_type`, … as `create_program` takes them.
  `:if_exists` says what is done where there is a program of that id: `"error"` (default), `"keep"` it
  or `"replace"` it.
  """
  @type config :: map()
  @type inputs :: map()
  @type options :: map()
  @type error :: {:error, DSPex.PythonBridge.Error.t()}

  @doc "Makes a program; its id is the config's, or a new one."
  @callback create_program(config()) :: {:ok, program_id()} | error()

  @doc ~S|Runs a program: `{:ok, %{"program_id" => id, "outputs" => outputs, …}}`.|
  @callback execute_program(program_id(), inputs()) :: {:ok, map()} | error()

  @doc "The same with options for the model: `temperature`, `max_tokens`."
  @callback execute_program(program_id(), inputs(), options()) :: {:ok, map()} | error()

  @doc "The ids of all programs."
  @callback list_programs() :: {:ok, [program_id()]} | error()

  @doc "Forgets a program."
  @callback delete_program(program_id()) :: :ok | error()

  @doc "What is known of a program."
  @callback get_program_info(program_id()) :: {:ok, map()} | error()

  @doc "Whether programs can be run."
  @callback health_check() :: :ok | error()

  @doc "Statistics of whatever runs the programs."
  @callback get_stats() :: {:ok, map()} | error()

  @doc "Whether the adapter belongs to a layer of tests: `:layer_1` without, `:layer_3` with a worker."
  @callback supports_test_layer?(layer :: atom()) :: boolean()

  @doc "What tests can expect of it."
  @callback get_test_capabilities() :: map()

  @optional_callbacks execute_program: 3,
                      get_program_info: 1,
                      health_check: 0,
                      get_stats: 0,
                      supports_test_layer?: 1,
                      get_test_capabilities: 0
end
