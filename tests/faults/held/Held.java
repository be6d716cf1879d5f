package lakehouse.faults;

import java.io.IOException;
import java.io.OutputStream;
import java.net.URI;
import java.net.URISyntaxException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;
import java.nio.file.StandardCopyOption;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.regex.Pattern;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.ChecksumFs;
import org.apache.hadoop.fs.DelegateToFileSystem;
import org.apache.hadoop.fs.FsConstants;
import org.apache.hadoop.fs.LocalFileSystem;
import org.apache.hadoop.fs.RawLocalFileSystem;
import org.apache.hadoop.fs.permission.FsPermission;
import org.apache.spark.TaskContext;
import org.apache.spark.api.plugin.DriverPlugin;
import org.apache.spark.api.plugin.ExecutorPlugin;
import org.apache.spark.api.plugin.PluginContext;
import org.apache.spark.api.plugin.SparkPlugin;

/**
 * The local file system, and Spark's tasks, which stop where a test wants them to: see ../holds.py for what the folder
 * in LAKEHOUSE_FAULTS says.
 */
public final class Held {
  private static final Path FOLDER = Paths.get(System.getenv("LAKEHOUSE_FAULTS"));
  private static final Path WANTED = FOLDER.resolve("wanted");
  private static final Set<String> DONE = ConcurrentHashMap.newKeySet();

  private Held() {}

  /** Waits where a line of the folder's file {@code wanted} names this kind of act and what it is done to. */
  static void at(String act, String text) throws IOException {
    if (!Files.exists(WANTED)) {
      return;
    }
    for (String line : Files.readString(WANTED).split("\n")) {
      String[] parts = line.split("\t", 3);
      if (parts.length == 3 && parts[1].equals(act) && Pattern.compile(parts[2]).matcher(text).find()
          && DONE.add(parts[0])) {
        hold(parts[0], text);
      }
    }
  }

  private static void hold(String name, String text) throws IOException {
    Path made = FOLDER.resolve(name + ".tmp");
    Files.writeString(made, text);
    Files.move(made, FOLDER.resolve(name + ".held"), StandardCopyOption.ATOMIC_MOVE);
    Path go = FOLDER.resolve(name + ".go");
    try {
      while (!Files.exists(go)) {
        Thread.sleep(5);
      }
    } catch (InterruptedException error) {
      Thread.currentThread().interrupt();
      throw new IOException(error);
    }
    if (Files.readString(go).equals("full")) {
      throw new IOException("No space left on device");
    }
  }

  private static final class Raw extends RawLocalFileSystem {
    @Override
    protected OutputStream createOutputStreamWithMode(org.apache.hadoop.fs.Path file, boolean append,
        FsPermission permission) throws IOException {
      at("create", file.toString());
      return super.createOutputStreamWithMode(file, append, permission);
    }

    @Override
    public boolean rename(org.apache.hadoop.fs.Path from, org.apache.hadoop.fs.Path to) throws IOException {
      at("rename", to.toString());
      boolean done = super.rename(from, to);
      at("renamed", to.toString());
      return done;
    }
  }

  /** As Spark reads and writes its checkpoints. */
  public static final class ByFileSystem extends LocalFileSystem {
    public ByFileSystem() {
      super(new Raw());
    }
  }

  /** As Delta writes its log. */
  public static final class ByContext extends ChecksumFs {
    public ByContext(URI uri, Configuration settings) throws IOException, URISyntaxException {
      super(new RawByContext(settings));
    }
  }

  private static final class RawByContext extends DelegateToFileSystem {
    RawByContext(Configuration settings) throws IOException, URISyntaxException {
      super(FsConstants.LOCAL_FS_URI, new Raw(), settings, FsConstants.LOCAL_FS_URI.getScheme(), false);
    }

    @Override
    public int getUriDefaultPort() {
      return -1;
    }

    @Override
    public boolean isValidName(String name) {
      return true;
    }
  }

  /** A task waits before its first row. */
  public static final class Tasks implements SparkPlugin {
    @Override
    public DriverPlugin driverPlugin() {
      return null;
    }

    @Override
    public ExecutorPlugin executorPlugin() {
      return new ExecutorPlugin() {
        @Override
        public void init(PluginContext context, Map<String, String> extra) {}

        @Override
        public void onTaskStart() {
          try {
            at("task", String.valueOf(TaskContext.get().getLocalProperty("spark.job.description")));
          } catch (IOException error) {
            throw new java.io.UncheckedIOException(error);
          }
        }
      };
    }
  }
}
