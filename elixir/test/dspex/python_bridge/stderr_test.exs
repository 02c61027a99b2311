defmodule DSPex.PythonBridge.StderrTest do
  # Not async: captures the stderr of the whole BEAM.
  use ExUnit.Case, async: false

  import ExUnit.CaptureIO
  import Workers
  alias DSPex.PythonBridge.{Bridge, Stderr}

  # Appends to the file, as a worker does. Returns another name of it, which the reader does not
  # remove.
  defp open do
    {:ok, {reader, path} = stderr} = Stderr.open()
    {:ok, file} = File.open(path, [:append, :raw])
    name = path <> ".test"
    File.ln!(path, name)
    on_exit(fn -> File.rm!(name) end)
    File.rm!(path)
    {reader, stderr, name, &IO.binwrite(file, &1)}
  end

  test "lines are forwarded, and the last ones are kept" do
    shown =
      capture_io(:stderr, fn ->
        {_, stderr, _, write} = open()
        for number <- 1..30, do: write.("line #{number}\n")
        write.(<<"not UTF-8: ", 255, "\r\nno end">>)
        lines = Stderr.last_lines(stderr)
        assert length(lines) == 20
        assert Enum.take(lines, -3) == ["line 30", "not UTF-8: \uFFFD", "no end"]
        assert Stderr.last_lines(nil) == []
      end)

    assert shown =~ "line 1\nline 2\n"
    assert shown =~ "line 30\nnot UTF-8: \uFFFD\nno end\n"
  end

  test "fast output does not fill the disk, and its end is kept" do
    shown =
      capture_io(:stderr, fn ->
        {reader, stderr, name, write} = open()
        :ok = :sys.suspend(reader)
        for _ <- 1..8, do: write.(String.duplicate(String.duplicate("x", 1_000) <> "\n", 1_000))
        write.("the end\n")
        :sys.resume(reader)
        assert List.last(Stderr.last_lines(stderr)) == "the end"
        write.("more\n")
        assert List.last(Stderr.last_lines(stderr)) == "more"
        assert File.stat!(name).size == byte_size("more\n")
      end)

    assert shown =~ ~r/\(\d+ bytes of the worker's stderr were dropped\)/
    assert byte_size(shown) < 1_000_000
  end

  test "a line that is too long is split" do
    capture_io(:stderr, fn ->
      {_, stderr, _, write} = open()
      write.(String.duplicate("y", 500_000))
      assert Enum.all?(Stderr.last_lines(stderr), &(byte_size(&1) == 2_000))
    end)
  end

  test "a reader ends with its owner, and leaves no file" do
    owner = Task.async(fn -> Stderr.open() end)
    {:ok, {reader, path}} = Task.await(owner)
    wait_until(fn -> not Process.alive?(reader) end)
    refute File.exists?(path)
  end

  test "the stderr of a worker is forwarded to the BEAM's stderr" do
    shown =
      capture_io(:stderr, fn ->
        bridge = start_bridge(adapter: "bridge_test_adapter:adapter")
        assert {:ok, _} = Bridge.call(bridge, :print, %{}, [])
        stop_supervised!(bridge)
        wait_until(fn -> readers() == 0 end)
      end)

    assert shown =~ "hello\nhello\n"
  end

  defp readers do
    Enum.count(Process.list(), fn pid ->
      dictionary = Process.info(pid, :dictionary)

      match?({:dictionary, [_ | _]}, dictionary) and
        dictionary |> elem(1) |> Keyword.get(:"$initial_call") == {Stderr, :init, 1}
    end)
  end
end
