# A BEAM as the host. It takes the orders of `contender.py`, and talks to its worker over a port.
#
#   elixir beam.exs FORMAT FOLDER PYTHON WORKER_FORMAT [FILE...]
#
# For payload number N, FOLDER contains N.etf (a list of its messages) and N.name (JSON). Uses only OTP
# and Elixir; JSON is part of Elixir since 1.18.

defmodule Beam do
  @batches 5
  @busy_limits {4 * 1024 * 1024, 8 * 1024 * 1024}
  @timeout 30_000
  @compile {:no_warn_undefined, JSON}

  def main([format, folder, python, worker_format | files]) do
    state = %{
      format: format,
      folder: folder,
      command: {python, ["-P", "-m", "bridge.bench.worker", worker_format | files]},
      cases: %{},
      port: nil
    }

    IO.stream(:stdio, :line) |> Enum.reduce(state, &execute/2)
  end

  defp execute(line, state) do
    [_, what] = Regex.run(~r/"do":"(\w+)"/, line)
    [_, index] = Regex.run(~r/"index":(\d+)/, line)

    {answer, state} =
      try do
        case what do
          "prepare" -> prepare(index, state)
          "round" -> round(index, budget(line), state)
        end
      rescue
        error -> {reason(Exception.message(error)), state}
      end

    IO.puts(answer)
    state
  end

  defp budget(line) do
    [_, seconds] = Regex.run(~r/"budget":([0-9.e+-]+)/, line)
    {seconds, _} = Float.parse(seconds)
    seconds * 1.0e9
  end

  defp reason(text) do
    text = text |> String.replace(~r/[^\x20-\x7e]+/, " ") |> String.replace(~r/["\\]/, "'")
    ~s({"reason":"#{String.slice(text, 0, 150)}"})
  end

  defp prepare(index, state) do
    if state.format == "json" and not Code.ensure_loaded?(JSON) do
      {reason("Elixir #{System.version()} has no JSON module (1.18 has)"), state}
    else
      state = %{state | port: state.port || open(state.command)}
      path = Path.join(state.folder, index)
      terms = :erlang.binary_to_term(File.read!(path <> ".etf"))
      encoded = Enum.map(terms, &encode(state.format, &1))
      ^terms = Enum.map(encoded, &decode(state.format, &1))
      case_ = %{name: File.read!(path <> ".name"), terms: terms, encoded: encoded}
      {_, replies} = trips(state, case_, length(terms))
      ^terms = Enum.take(replies, length(terms))
      bytes = Enum.sum(Enum.map(encoded, &byte_size/1)) / length(terms)
      {~s({"bytes":#{bytes}}), put_in(state.cases[index], case_)}
    end
  end

  defp open({python, arguments}) do
    Port.open({:spawn_executable, python}, [
      :binary,
      :hide,
      {:packet, 4},
      {:busy_limits_port, @busy_limits},
      {:args, arguments}
    ])
  end

  defp round(index, budget, state) do
    %{terms: terms, encoded: encoded} = case_ = state.cases[index]
    encode = timed(&encode(state.format, &1), terms, budget)
    decode = timed(&decode(state.format, &1), encoded, budget)
    {guess, _} = trips(state, case_, 10)
    calls = round(2 * budget / guess.total) |> max(15) |> min(20_000)
    {trip, _} = trips(state, case_, calls)

    parts =
      for {name, value} <- trip, do: ~s("trip_#{name}":#{value})

    times = Enum.join([~s("encode":#{encode}), ~s("decode":#{decode}) | parts], ",")
    {~s({"times":{#{times}}}), state}
  end

  # Returns the median ns of each part of `calls` round trips, and the replies.
  defp trips(%{format: format, port: port}, case_, calls) do
    Port.command(port, ~s({"payload":#{case_.name},"calls":#{calls}}))
    ~s({"ready":true}) = receive_frame(port)

    results =
      case_.terms
      |> Stream.cycle()
      |> Stream.take(calls)
      |> Enum.map(fn term ->
        begin = now()
        data = encode(format, term)
        encoded = now()
        Port.command(port, data)
        frame = receive_frame(port)
        received = now()
        reply = decode(format, frame)
        finish = now()
        {encoded - begin, finish - received, finish - begin, reply}
      end)

    theirs = receive_frame(port)
    part = fn position -> results |> Enum.map(&elem(&1, position)) |> median() end
    {encode, decode, total} = {part.(0) + step(theirs, "encode"), part.(1) + step(theirs, "decode"), part.(2)}
    rest = max(0, total - encode - decode - step(theirs, "build") - step(theirs, "read"))
    parts = %{encode: encode, decode: decode, build: 0, read: 0, pipe: rest, total: total}
    {parts, Enum.map(results, &elem(&1, 3))}
  end

  defp step(json, name) do
    [_, value] = Regex.run(~r/"#{name}":([0-9.e+-]+)/, json)
    {value, _} = Float.parse(value)
    value
  end

  defp receive_frame(port) do
    receive do
      {^port, {:data, frame}} -> frame
    after
      @timeout -> raise "no reply from the worker"
    end
  end

  # Returns the ns that a call takes, warm: the median of @batches batches, as in `timing.py`.
  defp timed(call, inputs, budget) do
    {count, took} = warm_up(call, inputs, budget / 10, now(), 0)
    repeats = max(1, trunc(budget / @batches / (took / count) / length(inputs)))

    for _ <- 1..@batches do
      started = now()
      repeat(repeats, call, inputs)
      (now() - started) / (repeats * length(inputs))
    end
    |> median()
  end

  defp warm_up(call, inputs, budget, started, count) do
    Enum.each(inputs, call)
    count = count + length(inputs)
    took = now() - started
    if took < budget, do: warm_up(call, inputs, budget, started, count), else: {count, took}
  end

  defp repeat(0, _call, _inputs), do: :ok

  defp repeat(times, call, inputs) do
    Enum.each(inputs, call)
    repeat(times - 1, call, inputs)
  end

  defp median(values), do: values |> Enum.sort() |> Enum.at(div(length(values), 2))
  defp now, do: System.monotonic_time(:nanosecond)

  defp encode("etf", term), do: :erlang.term_to_binary(term, minor_version: 2)
  defp encode("json", term), do: JSON.encode!(term)
  defp decode("etf", data), do: :erlang.binary_to_term(data, [:safe])
  defp decode("json", data), do: JSON.decode!(data)
end

Beam.main(System.argv())
