defmodule DSPex.PythonBridge.Pool.Choice do
  @moduledoc """
  Chooses the worker of a call, in the process that makes it.

  The load of a worker is the number of its open calls, with those that wait for a thread counted
  four times. Of two workers chosen at random the one with less load gets the call, which spreads calls
  almost as well as a look at all of them. If both are full, all are looked at.
  """

  alias DSPex.PythonBridge.{Connection, Error, Pool}

  # Seconds after which an overloaded pool may be asked again.
  @retry_after 0.1

  @doc """
  Returns a connection; `:none` if no worker takes calls; or the error `:overloaded`.

  `avoided` are the owners of workers that are used only if there are no others.
  """
  @spec choose(Pool.t(), [pid()]) :: {:ok, Connection.t()} | {:error, Error.t()} | :none
  def choose(pool, avoided \\ [])

  def choose(%{slots: slots} = pool, []) when tuple_size(slots) > 1 do
    {first, second} = two(tuple_size(slots))
    {load, connection} = less(loaded(pool, first), loaded(pool, second))

    cond do
      load < pool.threads -> {:ok, connection}
      load < heaviest(pool) -> crowded(pool, connection)
      true -> least(pool, [])
    end
  end

  def choose(%{slots: {connection}} = pool, []) do
    if load(pool, connection) < pool.threads, do: {:ok, connection}, else: least(pool, [])
  end

  def choose(pool, avoided), do: least(pool, avoided)

  # Two different numbers from 0 to count - 1.
  defp two(count) do
    random = :erlang.phash2(:erlang.unique_integer(), count * (count - 1))
    first = div(random, count - 1)
    second = rem(random, count - 1)
    {first, if(second >= first, do: second + 1, else: second)}
  end

  defp loaded(pool, index) do
    connection = elem(pool.slots, index)
    {load(pool, connection), connection}
  end

  defp less({load, _} = one, {other, _}) when load <= other, do: one
  defp less(_, other), do: other

  # The table of a worker that has ended does not exist, and an atom is greater than any number.
  defp load(%{threads: threads}, connection) do
    case :ets.info(connection.table, :size) do
      open when open > threads and is_integer(open) -> 4 * (open - threads) + threads
      open -> open
    end
  end

  defp heaviest(pool), do: 4 * (pool.limit - pool.threads) + pool.threads

  defp least(pool, avoided) do
    loads = for connection <- Tuple.to_list(pool.slots), do: {load(pool, connection), connection}
    alive = for {load, connection} <- loads, is_integer(load), do: {load, connection}
    fresh = Enum.reject(alive, fn {_, connection} -> connection.owner in avoided end)

    case Enum.min_by(if(fresh == [], do: alive, else: fresh), &elem(&1, 0), fn -> nil end) do
      nil ->
        :none

      {load, connection} ->
        cond do
          load < pool.threads -> {:ok, connection}
          load < heaviest(pool) -> crowded(pool, connection)
          true -> full(pool)
        end
    end
  end

  # The call waits for a thread, and a further worker is started for those that follow.
  defp crowded(pool, connection) do
    grow(pool)
    {:ok, connection}
  end

  defp full(pool) do
    grow(pool)
    line = "all workers of the pool have as many calls as they may"
    {:error, Error.new(:overloaded, line, %{"retry_after" => @retry_after})}
  end

  defp grow(pool) do
    if :atomics.exchange(pool.wants_more, 1, 1) == 0, do: send(pool.server, :grow)
    :ok
  end
end
