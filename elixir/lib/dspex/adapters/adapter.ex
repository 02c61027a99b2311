defmodule DSPex.Adapters.Adapter do
  @moduledoc """
  The behaviour of modules that run programs: `DSPex.Adapters.PythonPort` with a worker,
  `DSPex.Adapters.PythonPoolV2` with several, `DSPex.Adapters.Mock` without one.

  `configured/0` returns the module that the configuration names, so that its tests can use the mock
  and another environment a pool, without other changes:

      # config :dspex_bridge, adapter: DSPex.Adapters.PythonPoolV2
      adapter = DSPex.Adapters.Adapter.configured()
      {:ok, id} = adapter.create_program(%{signature: DSPex.Signature.new("question -> answer")})
      {:ok, %{"outputs" => %{"answer" => _}}} = adapter.execute_program(id, %{question: "Why?"})
  """

  @type program_id :: String.t()
  @typedoc """
  `:signature` (see `DSPex.Signature`), and optionally `:id`, `:program_type` and other args of
  the command `create_program`. `:if_exists` decides what happens to an existing program with the
  same id: `"error"` (default) fails, `"keep"` keeps it, and `"replace"` replaces it.
  """
  @type config :: map()
  @type inputs :: map()
  @type options :: map()
  @type error :: {:error, DSPex.PythonBridge.Error.t()}

  @doc """
  Returns the module of `config :dspex_bridge, adapter: …`; by default `DSPex.Adapters.PythonPort`.

  It is read at each call, so a test can set it with `Application.put_env/3`.
  """
  @spec configured() :: module()
  def configured, do: Application.get_env(:dspex_bridge, :adapter, DSPex.Adapters.PythonPort)

  @doc "Creates a program with the id in the config, or with a new id."
  @callback create_program(config()) :: {:ok, program_id()} | error()

  @doc ~S|Runs a program: `{:ok, %{"program_id" => id, "outputs" => outputs, …}}`.|
  @callback execute_program(program_id(), inputs()) :: {:ok, map()} | error()

  @doc "Runs a program with options for the model, such as `temperature` and `max_tokens`."
  @callback execute_program(program_id(), inputs(), options()) :: {:ok, map()} | error()

  @doc "Returns the ids of all programs."
  @callback list_programs() :: {:ok, [program_id()]} | error()

  @doc "Deletes a program."
  @callback delete_program(program_id()) :: :ok | error()

  @doc "Returns information about a program."
  @callback get_program_info(program_id()) :: {:ok, map()} | error()

  @doc "Checks that programs can be run."
  @callback health_check() :: :ok | error()

  @doc "Returns statistics of the worker or the mock."
  @callback get_stats() :: {:ok, map()} | error()

  @doc """
  Returns whether the adapter serves a layer of tests: `:layer_1` without, `:layer_3` with a
  worker.

  This callback and `c:get_test_capabilities/0` exist only for the test suites of applications
  that were written for the package `dspex`; nothing in this package calls them.
  """
  @callback supports_test_layer?(layer :: atom()) :: boolean()

  @doc "Returns what tests can expect of the adapter; see `c:supports_test_layer?/1`."
  @callback get_test_capabilities() :: map()

  @optional_callbacks execute_program: 3,
                      get_program_info: 1,
                      health_check: 0,
                      get_stats: 0,
                      supports_test_layer?: 1,
                      get_test_capabilities: 0
end
