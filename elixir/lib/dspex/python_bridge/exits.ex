defmodule DSPex.PythonBridge.Exits do
  @moduledoc """
  Describes exceptions, exits and throws of application code (tools and setups) in one line,
  without the arguments of the functions that failed: they may hold secrets, and the line goes
  into logs and errors.
  """

  alias DSPex.PythonBridge.Text

  @doc "Returns one line that describes an exception, exit or throw."
  @spec line(:error | :exit | :throw, term(), Exception.stacktrace()) :: String.t()
  def line(:error, {:badfun, function}, _stacktrace) when is_function(function) do
    replaced(function)
  end

  def line(:error, %BadFunctionError{term: function}, _stacktrace) when is_function(function) do
    replaced(function)
  end

  def line(:error, :undef, [{function, _, _} | _]) when is_function(function) do
    "#{inspect(module(function))}, which has the anonymous function, is not loaded on #{node()}. " <>
      "Use a capture such as &Module.function/1 of a module that all nodes have"
  end

  def line(:error, reason, stacktrace) do
    exception = Exception.normalize(:error, reason, stacktrace)

    case exception |> message() |> Text.opening() do
      "" -> inspect(exception.__struct__)
      line -> line
    end
  end

  def line(:exit, reason, _stacktrace), do: Text.line("exit: #{exit_reason(reason)}")
  def line(:throw, value, _stacktrace), do: Text.line("throw: #{safe(value)}")

  @doc "Replaces the arguments in a stacktrace by arities."
  @spec without_arguments(Exception.stacktrace()) :: Exception.stacktrace()
  def without_arguments(stacktrace) do
    for entry <- stacktrace do
      case entry do
        {module, function, arguments, location} when is_list(arguments) ->
          {module, function, length(arguments), location}

        {function, arguments, location} when is_list(arguments) ->
          {function, length(arguments), location}

        entry ->
          entry
      end
    end
  end

  # The error of a call to a function whose module was loaded twice since the function was
  # created.
  defp replaced(function) do
    "a function's code was removed: #{inspect(module(function))} was recompiled since the function was " <>
      "created. Use a capture such as &Module.function/1, which always calls the current code"
  end

  defp module(function) do
    {:module, module} = Function.info(function, :module)
    module
  end

  # The reason of a failed call to another process.
  defp exit_reason({reason, {module, function, arguments}})
       when is_atom(module) and is_atom(function) and is_list(arguments) do
    "#{exit_reason(reason)} in #{inspect(module)}.#{function}/#{length(arguments)}"
  end

  # The reason of a process that ended with an error.
  defp exit_reason({reason, [{_, _, _, _} | _] = stacktrace}) do
    line(:error, reason, stacktrace)
  end

  defp exit_reason(reason), do: safe(reason)

  # The exception's own message would show the whole map.
  defp message(%KeyError{key: key}), do: "key #{inspect(key)} not found"

  # `message/1` of an exception, and `inspect` of a struct, are application code and may raise.
  defp message(exception) do
    Exception.message(exception)
  catch
    _kind, _reason -> inspect(exception.__struct__)
  end

  defp safe(term) do
    inspect(term, limit: 10, printable_limit: 200)
  catch
    _kind, _reason -> "a term that cannot be inspected"
  end
end
