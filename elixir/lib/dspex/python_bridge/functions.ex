defmodule DSPex.PythonBridge.Functions do
  @moduledoc """
  The Elixir functions that a worker may call: tools, models, metrics, rewards and embedders.

  A table holds `{{session_id, kind, name}, function}`. The workers of a pool share one. What runs the
  functions is `DSPex.PythonBridge.HostCalls`.
  """

  alias DSPex.PythonBridge.{Call, Connection, Error, OpenCall}
  alias DSPex.Tool

  # By the option that declares functions of a kind.
  @kinds [models: :model, metrics: :metric, rewards: :reward, embedders: :embedder]
  # The default session's id, which depends on the worker's mode.
  @default_sessions ["default", "anonymous"]

  @type kind :: :tool | :model | :metric | :reward | :embedder
  @typedoc "A function of the request, or for a model also one of the request and `emit`, or a `DSPex.Model`."
  @type function_of_host :: (map() -> term()) | (map(), (String.t() -> :ok) -> term()) | module()
  @typedoc "Names with functions: maps or keyword lists for `:models`, `:metrics`, `:rewards` and `:embedders`."
  @type functions :: map() | keyword()

  @doc "Returns the options that declare functions other than tools."
  @spec options() :: [atom()]
  def options, do: Keyword.keys(@kinds)

  @doc "Returns a new table of functions, of the calling process."
  @spec new_table() :: :ets.table()
  # Ordered, so that the functions of one session are found without reading all others.
  def new_table, do: :ets.new(__MODULE__, [:public, :ordered_set, read_concurrency: true])

  @doc "Removes the functions of a session that has ended."
  @spec forget(:ets.table(), String.t()) :: true
  def forget(table, session_id), do: :ets.match_delete(table, {{session_id, :_, :_}, :_})

  @doc """
  Lets `find/4` call a function, with the arguments after the table, for what a table lacks.
  """
  @spec look_elsewhere(
          :ets.table(),
          (String.t(), kind(), String.t() -> {:ok, function_of_host()} | :error)
        ) :: true
  def look_elsewhere(table, find), do: :ets.insert(table, {:elsewhere, find})

  @doc """
  Returns the function of a session, or else that of the default session. Returns `:no_worker` if the
  owner of the table has ended.
  """
  @spec find(:ets.table(), String.t(), kind(), String.t()) ::
          {:ok, function_of_host()} | :error | :no_worker
  def find(table, session_id, kind, name) do
    with :error <- find_own(table, session_id, kind, name),
         [elsewhere: find] <- :ets.lookup(table, :elsewhere),
         do: find.(session_id, kind, name),
         else:
           (
             [] -> :error
             found -> found
           )
  end

  @doc "Returns the function of a session as `find/4` does, but only if the table has it."
  @spec find_own(:ets.table(), String.t(), kind(), String.t()) ::
          {:ok, function_of_host()} | :error | :no_worker
  def find_own(table, session_id, kind, name) do
    Enum.find_value([session_id | @default_sessions], :error, fn session ->
      with [{_, function}] <- :ets.lookup(table, {session, kind, name}),
           do: {:ok, function},
           else: (_ -> nil)
    end)
  rescue
    ArgumentError -> :no_worker
  end

  @doc "Returns the functions of the default session, as `add/2` takes them."
  @spec shared(:ets.table()) :: list()
  def shared(table) do
    for session <- @default_sessions,
        row <- :ets.match_object(table, {{session, :_, :_}, :_}),
        do: row
  end

  @doc "Adds functions that the table lacks."
  @spec add(:ets.table(), list()) :: :ok
  def add(table, rows), do: Enum.each(rows, &:ets.insert_new(table, &1))

  @doc "Returns whether functions registered for a session are those of the default session."
  @spec default?(String.t() | nil) :: boolean()
  def default?(session_id), do: session_id in [nil | @default_sessions]

  @doc "Registers tools; see `DSPex.PythonBridge.Bridge.register_tools/3`."
  @spec register_tools(GenServer.server() | Connection.t(), [Tool.t()], OpenCall.options()) ::
          {:ok, term()} | {:error, Error.t()}
  def register_tools(_server, [], _options), do: {:ok, %{}}

  def register_tools(server, tools, options) do
    declared = declared!(tools)
    {timeout, _} = OpenCall.envelope(options)
    connection = Connection.fetch!(server, OpenCall.deadline(timeout))
    reply = Call.run(connection, "register_tools", %{tools: declared}, options)

    # The worker reports the session: without an option it depends on the worker's mode.
    with {:ok, %{"session_id" => session_id}} <- reply,
         :ok <- put(connection.functions, session_id, of_tools(tools)),
         do: reply
  rescue
    error in Error -> {:error, error}
  end

  @doc "Returns the declarations of tools for a worker. Raises `ArgumentError` for anything else."
  @spec declared!([Tool.t()]) :: [map()]
  def declared!(tools) do
    (is_list(tools) and Enum.all?(tools, &is_struct(&1, Tool))) ||
      raise ArgumentError, "tools must be a list of DSPex.Tool structs"

    Enum.map(tools, &Map.take(&1, [:name, :description, :args]))
  end

  @doc "Returns the functions of tools, as `put/3` takes them."
  @spec of_tools([Tool.t()]) :: [{kind(), String.t(), function_of_host()}]
  def of_tools(tools), do: for(tool <- tools, do: {:tool, tool.name, tool.run})

  @doc "Registers other functions; see `DSPex.PythonBridge.Bridge.register/3`."
  @spec register(GenServer.server() | Connection.t(), functions(), OpenCall.options()) ::
          :ok | {:error, Error.t()}
  def register(server, functions, options) do
    checked = checked!(functions)
    {timeout, envelope} = OpenCall.envelope(options)
    connection = Connection.fetch!(server, OpenCall.deadline(timeout))
    {_, session_id} = List.keyfind(envelope, "session_id", 0, {nil, nil})
    put(connection.functions, session_id && to_string(session_id), checked)
  rescue
    error in Error -> {:error, error}
  end

  @doc "Adds functions to a table, to those of a session or (`nil`) of the default session."
  @spec put(:ets.table(), String.t() | nil, [{kind(), String.t(), function_of_host()}]) ::
          :ok | {:error, Error.t()}
  def put(table, session_id, functions) do
    session_id = session_id || hd(@default_sessions)

    for {kind, name, function} <- functions,
        do: :ets.insert(table, {{session_id, kind, name}, function})

    :ok
  rescue
    # The owner has ended, and its table with it.
    ArgumentError -> {:error, Error.new(:worker_crashed, "the worker has ended")}
  end

  @doc """
  Returns functions as `put/3` takes them. Raises `ArgumentError` for anything that is not in the form of
  the options.
  """
  @spec checked!(functions()) :: [{kind(), String.t(), function_of_host()}]
  def checked!(functions) do
    for {option, named} <- functions, {name, function} <- named!(option, named) do
      {@kinds[option], to_string(name), function!(@kinds[option], name, function)}
    end
  end

  defp named!(option, named) do
    Keyword.has_key?(@kinds, option) ||
      raise ArgumentError, "unknown kind #{inspect(option)}; known: #{inspect(options())}"

    is_map(named) or Keyword.keyword?(named) ||
      raise ArgumentError, "#{inspect(option)} must be a map or a keyword list of functions"

    named
  end

  defp function!(_kind, _name, function) when is_function(function, 1), do: function
  defp function!(:model, _name, function) when is_function(function, 2), do: function

  defp function!(:model, name, module)
       when is_atom(module) and module not in [nil, true, false] do
    (Code.ensure_loaded?(module) and function_exported?(module, :complete, 1)) ||
      raise ArgumentError, "the model #{name}: #{inspect(module)} has no complete/1"

    module
  end

  defp function!(kind, name, other) do
    expected =
      if kind == :model,
        do: "a module with the behaviour DSPex.Model, or a function of one or two arguments",
        else: "a function of one argument, the request"

    raise ArgumentError, "the #{kind} #{name} must be #{expected}, not #{inspect(other)}"
  end
end
