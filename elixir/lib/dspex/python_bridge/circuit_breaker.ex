defmodule DSPex.PythonBridge.CircuitBreaker do
  @moduledoc """
  Refuses calls while what they need fails; the pool has a circuit for each provider of models.

  A circuit is closed, and opens after 5 failures in a row. After 60 s it is half-open: at most 3
  calls at a time are admitted to try it out. It closes after 3 of them have succeeded, and opens
  again after one has failed.

      iex> alias DSPex.PythonBridge.CircuitBreaker
      iex> breaker = CircuitBreaker.new()
      iex> {:ok, permit} = CircuitBreaker.admit(breaker, "openai")
      iex> for _ <- 1..5, do: CircuitBreaker.settle(breaker, "openai", permit, false)
      iex> {:error, error} = CircuitBreaker.admit(breaker, "openai")
      iex> {error.code, error.details["retry_after"] > 59, CircuitBreaker.state(breaker, "openai")}
      {:circuit_open, true, :open}

  Circuits are rows of an ETS table, which callers change themselves: no process stands in the way
  of a call, and a key without recent failures has no row. Each change of a state is an event of
  `DSPex.PythonBridge.Telemetry`.
  """

  alias DSPex.PythonBridge.{Error, Telemetry}

  # In a row, which open a circuit.
  @failures 5
  # ms
  @open_for 60_000
  # At once.
  @probes 3
  # Which close a circuit.
  @successes 3
  # Seconds after which to ask again while all probes run.
  @probe_wait 1.0

  # Keys; beyond that, any one is forgotten.
  @limit 1_000

  # state, the time when it was entered, failures in a row while closed, the processes of the calls
  # that were admitted while half-open and have not ended, how many of those have succeeded.
  @new {:closed, 0, 0, [], 0}

  @enforce_keys [:table, :clock, :name]
  defstruct @enforce_keys

  @opaque t :: %__MODULE__{table: :ets.table(), clock: (() -> integer()), name: term()}
  @opaque permit :: nil | {integer(), pid()}
  @type key :: String.t()
  @type state :: :closed | :open | :half_open

  @doc """
  Returns a breaker that belongs to the calling process and ends with it: from then on every call is
  admitted.

    * `:name` - the name of the pool, for telemetry
    * `:clock` - a function that returns ms, which never decrease; by default the monotonic time
  """
  @spec new(keyword()) :: t()
  def new(options \\ []) do
    options = Keyword.validate!(options, name: nil, clock: &__MODULE__.now/0)
    table = :ets.new(__MODULE__, [:public, read_concurrency: true])
    %__MODULE__{table: table, clock: options[:clock], name: options[:name]}
  end

  @doc """
  Returns the permit of a call, which has to be passed to `settle/4` when the call ends, or the error
  `:circuit_open`, with `"retry_after"` (seconds) in its details, if the call must not be sent.

  The permit of a process that has ended is free again.
  """
  @spec admit(t(), key()) :: {:ok, permit()} | {:error, Error.t()}
  def admit(breaker, key) when is_binary(key) do
    case circuit(breaker, key) do
      @new -> {:ok, nil}
      circuit -> admit(breaker, key, circuit, breaker.clock.())
    end
  end

  defp admit(breaker, key, circuit, now) do
    case admitted(circuit, self(), now) do
      nil ->
        {:error, refusal(key, circuit, now)}

      {state, since, _, _, _} = changed ->
        if replace(breaker, key, circuit, changed) do
          {:ok, if(state == :half_open, do: {since, self()})}
        else
          admit(breaker, key)
        end
    end
  end

  @doc """
  Counts the end of a call: `true` for a success, `false` for a failure, `nil` if the call says
  nothing about what it needs, as one that was cancelled or had invalid args.
  """
  @spec settle(t(), key(), permit(), boolean() | nil) :: :ok
  def settle(breaker, key, permit, succeeded) when is_binary(key) do
    circuit = circuit(breaker, key)
    changed = settled(circuit, permit, succeeded, breaker)

    if replace(breaker, key, circuit, changed) do
      :ok
    else
      settle(breaker, key, permit, succeeded)
    end
  end

  @doc """
  Returns the state of a key. An open circuit becomes half-open with the next call.
  """
  @spec state(t(), key()) :: state()
  def state(breaker, key) when is_binary(key), do: breaker |> circuit(key) |> elem(0)

  @doc false
  @spec now() :: integer()
  def now, do: System.monotonic_time(:millisecond)

  # The transitions

  # Returns the circuit after a call was admitted, or nil if it must not be.
  defp admitted({:closed, _, _, _, _} = circuit, _caller, _now), do: circuit

  defp admitted({:open, since, _, _, _}, caller, now) do
    if now >= since + @open_for, do: {:half_open, now, 0, [caller], 0}
  end

  defp admitted({:half_open, since, 0, probes, successes}, caller, _now) do
    probes = if length(probes) < @probes, do: probes, else: Enum.filter(probes, &Process.alive?/1)
    if length(probes) < @probes, do: {:half_open, since, 0, [caller | probes], successes}
  end

  # Returns the circuit after a call has ended. A call that an earlier state admitted changes
  # nothing.
  defp settled({:closed, _, _, _, _}, nil, true, _breaker), do: @new

  defp settled({:closed, _, failures, _, _}, nil, false, breaker) do
    if failures + 1 >= @failures, do: open(breaker), else: {:closed, 0, failures + 1, [], 0}
  end

  defp settled({:half_open, since, _, _, _}, {since, _}, false, breaker), do: open(breaker)

  defp settled({:half_open, since, _, probes, successes}, {since, caller}, succeeded, _breaker) do
    successes = if succeeded, do: successes + 1, else: successes
    probes = List.delete(probes, caller)
    if successes >= @successes, do: @new, else: {:half_open, since, 0, probes, successes}
  end

  defp settled(circuit, _permit, _succeeded, _breaker), do: circuit

  defp open(breaker), do: {:open, breaker.clock.(), 0, [], 0}

  defp refusal(key, {state, since, _, _, _}, now) do
    wait = if state == :open, do: (since + @open_for - now) / 1000, else: @probe_wait

    Error.new(
      :circuit_open,
      "calls of #{key} are not sent after #{@failures} failures in a row",
      %{"retry_after" => wait}
    )
  end

  # The table

  defp circuit(breaker, key) do
    case :ets.lookup(breaker.table, key) do
      [{_, circuit}] -> circuit
      [] -> @new
    end
  rescue
    # The owner of the table has ended, perhaps while the call was open.
    ArgumentError -> @new
  end

  # Returns whether the circuit was replaced: another process may have changed it since it was read.
  defp replace(_breaker, _key, circuit, circuit), do: true

  defp replace(%{table: table} = breaker, key, circuit, changed) do
    replaced? = replace_row(table, key, circuit, changed)
    if replaced? == true, do: report(breaker, key, elem(circuit, 0), elem(changed, 0))
    replaced? != false
  end

  defp replace_row(table, key, circuit, changed) do
    case {circuit, changed} do
      {@new, _} -> insert_row(table, key, changed)
      {_, @new} -> :ets.select_delete(table, [{{key, circuit}, [], [true]}]) == 1
      _ -> :ets.select_replace(table, [{{key, circuit}, [], [{:const, {key, changed}}]}]) == 1
    end
  rescue
    ArgumentError -> :ended
  end

  defp insert_row(table, key, circuit) do
    if :ets.info(table, :size) >= @limit, do: :ets.delete(table, :ets.first(table))
    :ets.insert_new(table, {key, circuit})
  end

  defp report(_breaker, _key, state, state), do: :ok

  defp report(breaker, key, from, state) do
    Telemetry.breaker(state, %{pool: breaker.name, key: key, from: from})
  end
end
