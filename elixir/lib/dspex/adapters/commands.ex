defmodule DSPex.Adapters.Commands do
  @moduledoc """
  The functions that adapters of DSPy's commands have in common: `use DSPex.Adapters.Commands`.

  A module that uses this defines `call(command, args, options)`, which calls a command of a worker, and
  gets one function for each command, such as `evaluate/5`. What a command needs are parameters; further
  args are a map, and the last parameter is the options of the call: a timeout in ms, or a keyword list.
  The result is `{:ok, result}` as the worker gives it, or `{:error, error}`.

      {:ok, %{"score" => score}} =
        PythonPort.evaluate("qa", devset, "exact_match", %{model: "cheap"}, timeout: 600_000)
  """

  # Ms. Runs of many rows, optimizations and vectors of many texts take as long as they take.
  @timeout 30_000

  # By command: what it needs, and the default timeout.
  @commands [
    get_program: {[:program_id], @timeout},
    export_program: {[:program_id], @timeout},
    import_program: {[:document], @timeout},
    save_program: {[:program_id, :path], @timeout},
    load_program: {[:program_id, :path], @timeout},
    execute_batch: {[:program_id, :inputs], :infinity},
    evaluate: {[:program_id, :devset, :metric], :infinity},
    optimize: {[:program_id, :optimizer, :trainset, :metric], :infinity},
    get_history: {[], @timeout},
    inspect_call: {[:id], @timeout},
    configure_embedder: {[:model], @timeout},
    create_index: {[:index_id, :texts], :infinity},
    add_to_index: {[:index_id, :texts], :infinity},
    search_index: {[:index_id], @timeout},
    list_indexes: {[], @timeout},
    delete_index: {[:index_id], @timeout},
    embed: {[:texts], @timeout}
  ]

  @doc "Returns the commands for which functions are defined, with what they need."
  @spec all() :: [{atom(), [atom()]}]
  def all, do: for({command, {needed, _}} <- @commands, do: {command, needed})

  # With `programs: false`, without the functions of the behaviour `DSPex.Adapters.Adapter`.
  defmacro __using__(options) do
    functions = Enum.map(@commands, &function/1)
    if options[:programs] == false, do: functions, else: [base() | functions]
  end

  defp base do
    quote do
      @behaviour DSPex.Adapters.Adapter

      @impl true
      def create_program(config) do
        with {:ok, %{"program_id" => id}} <- call(:create_program, config, unquote(@timeout)),
             do: {:ok, id}
      end

      @impl true
      def execute_program(program_id, inputs, options \\ %{}) do
        args = %{program_id: program_id, inputs: inputs, options: options}
        call(:execute_program, args, unquote(@timeout))
      end

      @impl true
      def list_programs do
        with {:ok, %{"programs" => programs} = listed} <-
               call(:list_programs, %{}, unquote(@timeout)) do
          {:ok, Enum.map(programs, & &1["program_id"]) ++ Map.get(listed, "registered", [])}
        end
      end

      @impl true
      def delete_program(program_id) do
        args = %{program_id: program_id}
        with {:ok, _} <- call(:delete_program, args, unquote(@timeout)), do: :ok
      end

      @impl true
      def get_program_info(program_id) do
        call(:get_program_info, %{program_id: program_id}, unquote(@timeout))
      end
    end
  end

  defp function({command, {needed, timeout}}) do
    parameters = for name <- needed, do: Macro.var(name, __MODULE__)
    given = Enum.zip(needed, parameters)

    quote do
      @doc """
      Calls the command `#{unquote(command)}`; see `DSPex.Adapters.Commands`.
      """
      def unquote(command)(unquote_splicing(parameters), args \\ %{}, options \\ unquote(timeout)) do
        call(unquote(command), Enum.into(unquote(given), Map.new(args)), options)
      end
    end
  end
end
